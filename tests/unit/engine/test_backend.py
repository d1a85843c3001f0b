"""What depends on a precision is asked of the back end: no other module knows one by name."""

import ast
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pytest
import torch
from kit import ROOT, checkpoints, formula

import clip
from clip.engine import backend_openvino, devices
from clip.engine.backend import Backend
from clip.engine.backend_cuda import CudaBackend
from clip.engine.backend_openvino import OpenVinoBackend
from clip.engine.backend_torch import TorchBackend
from clip.engine.quantize import Calibration
from clip.errors import DeviceError, InputError
from clip.jobs.options import Precision

SOURCE = ROOT / "src" / "clip"
ASKING = [SOURCE / "encoder.py", SOURCE / "clip.py"]
ASKING += [path for path in (SOURCE / "engine").glob("*.py") if not path.name.startswith("backend_")]
openvino_here = pytest.mark.skipif(not backend_openvino.usable_precisions(), reason="OpenVINO is for x86-64")


@pytest.mark.parametrize("path", ASKING, ids=lambda path: path.stem)
def test_no_precision_is_compared_by_name_outside_the_back_ends(path: Path) -> None:
    names = set(get_args(Precision)) - {"reference"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Compare):
            constants = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
            assert not constants & names, ast.unparse(node)


BACKENDS = [
    pytest.param(lambda: OpenVinoBackend("fp32", 1), marks=openvino_here, id="openvino"),
    pytest.param(lambda: TorchBackend(torch.device("cpu"), "bf16"), id="torch"),
    pytest.param(lambda: CudaBackend(torch.device("cuda", 0), "fp8"), id="cuda"),
]


@pytest.mark.parametrize("make", BACKENDS)
def test_a_precision_that_is_not_quantised_takes_no_images(make: Any) -> None:
    backend: Backend = make()
    assert not backend.needs_calibration
    assert backend.computed_in == backend.precision
    with pytest.raises(InputError, match=f"calibrate: precision '{backend.precision}' is not quantised by images"):
        backend.calibrate(Calibration(np.zeros((1, 32, 32, 3), np.uint8)))


@openvino_here
def test_int8_says_that_it_wants_images_and_what_computes_the_rest() -> None:
    backend = OpenVinoBackend("int8", 1)
    assert backend.needs_calibration
    rest = "bf16" if "bf16" in backend_openvino.usable_precisions() else "fp32"
    assert backend.computed_in == f"int8+{rest}"


@pytest.mark.parametrize("make", BACKENDS)
def test_a_model_is_refused_by_the_back_end_whose_precision_does_not_suit_it(make: Any) -> None:
    backend: Backend = make()
    backend.check(formula.ARCHITECTURES["ViT-L/14"])
    if backend.precision == "fp8":
        with pytest.raises(DeviceError, match="precision 'fp8': found a ViT 768 wide"):
            backend.check(formula.ARCHITECTURES["ViT-B/32"])
    else:
        backend.check(formula.ARCHITECTURES["RN50"])


@openvino_here
def test_a_new_precision_is_a_change_to_its_back_end_and_to_the_literal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if "nf4" had been added to both: the engine, the encoder and the list of devices follow."""
    words = Literal[(*get_args(Precision), "nf4")]  # type: ignore[valid-type]
    monkeypatch.setattr(devices, "Precision", words)
    monkeypatch.setattr(devices, "openvino_precisions", lambda: ["fp32", "nf4"])
    monkeypatch.setitem(backend_openvino.HINTS, "nf4", "f32")
    precision: Any = "nf4"
    encoder = clip.Encoder(checkpoints.write(tmp_path), device="cpu", precision=precision)
    assert (encoder.precision, encoder.computed_in, encoder.needs_calibration) == ("nf4", "nf4", False)
    assert encoder.embed_images([formula.picture(0, 40, 30)]).shape == (1, encoder.dim)
    assert encoder.embed_texts("a").shape == (1, encoder.dim)
    assert devices.list_devices()[0].precisions == ("fp32", "nf4")
