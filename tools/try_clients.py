"""Try the clients that people have against a running `clip serve`, each in a virtual environment of its own.

Usage: python tools/try_clients.py --venvs DIR --image FILE [--url http://127.0.0.1:8000] [--model ViT-B/32]

DIR/NAME/bin/python runs each client, for NAME in openai, cohere, langchain-openai, llama-index-embeddings-openai-like
and litellm (pip install NAME); DIR/node has node_modules/openai. A client that is not installed is named. Every vector
is compared with that of the same image sent as a body; the largest difference is printed. FILE is a PNG.
"""

import argparse
import base64
import json
import os
import subprocess
import urllib.request
from pathlib import Path

BEGIN = """
import json, os
url, model, uri = os.environ["CLIP_URL"], os.environ["CLIP_MODEL_NAME"], os.environ["CLIP_IMAGE"]
"""
PYTHON = {
    "openai": """
from openai import OpenAI
client = OpenAI(base_url=url + "/v1", api_key="none")
print(json.dumps(client.embeddings.create(model=model, input=[uri]).data[0].embedding))
""",
    "cohere": """
import cohere
client = cohere.ClientV2(api_key="none", base_url=url)
found = client.embed(model=model, input_type="image", images=[uri], embedding_types=["float"])
print(json.dumps(found.embeddings.float_[0]))
""",
    "langchain-openai": """
from langchain_openai import OpenAIEmbeddings
found = OpenAIEmbeddings(model=model, base_url=url + "/v1", api_key="none", check_embedding_ctx_length=False)
print(json.dumps(found.embed_documents([uri])[0]))
""",
    "llama-index-embeddings-openai-like": """
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
client = OpenAILikeEmbedding(model_name=model, api_base=url + "/v1", api_key="none")
print(json.dumps(client.get_text_embedding(uri)))
""",
    "litellm": """
import litellm
found = litellm.embedding(model="openai/" + model, input=[uri], api_base=url + "/v1", api_key="none")
print(json.dumps(found.data[0]["embedding"]))
""",
}
NODE = """
const OpenAI = require("openai").default;
const { CLIP_URL, CLIP_MODEL_NAME, CLIP_IMAGE } = process.env;
const client = new OpenAI({ baseURL: CLIP_URL + "/v1", apiKey: "none" });
client.embeddings.create({ model: CLIP_MODEL_NAME, input: [CLIP_IMAGE] })
  .then((found) => console.log(JSON.stringify(found.data[0].embedding)));
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--venvs", type=Path, required=True)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", default="ViT-B/32")
    options = parser.parse_args()
    data = options.image.read_bytes()
    request = urllib.request.Request(f"{options.url}/v1/embeddings", data, {"Content-Type": "image/png"})
    with urllib.request.urlopen(request) as answer:
        expected = json.load(answer)["data"][0]["embedding"]
    uri = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    environment = {**os.environ, "CLIP_URL": options.url, "CLIP_MODEL_NAME": options.model, "CLIP_IMAGE": uri}
    environment.pop("PYTHONPATH", None)
    commands = {
        name: [str(options.venvs / name / "bin" / "python"), "-c", BEGIN + code] for name, code in PYTHON.items()
    }
    for name, command in [*commands.items(), ("openai-node", ["node", "-e", NODE])]:
        folder = options.venvs / ("node" if name == "openai-node" else name)
        if not folder.is_dir():
            print(f"{name}: {folder} is not there")
            continue
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
        if done.returncode:
            print(f"{name}: failed: {done.stderr.strip().splitlines()[-1][:200]}")
            continue
        found = json.loads(done.stdout.strip().splitlines()[-1])
        difference = max(abs(a - b) for a, b in zip(found, expected, strict=True))
        print(f"{name}: {len(found)} numbers, largest difference {difference}")


if __name__ == "__main__":
    main()
