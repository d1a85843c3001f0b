"""Lines of results -> the README's tables. Knows nothing about how anything was measured."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from bar import Line, Verdict, by_key, compared, counts, faster_peers, fastest_other, value, verdicts
from peers import OURS, OURS_FAST, REFERENCE, REFERENCE_PRECISION

if TYPE_CHECKING:
    from pathlib import Path

BEGIN, END = "<!-- bench -->", "<!-- /bench -->"
PRECISIONS = ("fp32", "bf16", "fp16")
NONE = "-"
MAX_PROBLEM = 200  # characters; the results have all of it
# The other rows: what their number is, and how a line gives it.
ROWS = {
    "latency": ("one image, ms", lambda line: f"{line['seconds_per_image'] * 1e3:.1f}"),
    "jpeg-web": ("JPEGs of 0.2 MP, images/s", lambda line: number(line["images_per_s"])),
    "jpeg-12mp": ("photos of 12 MP, images/s", lambda line: number(line["images_per_s"])),
    "command-web": ("JPEGs of 0.2 MP, whole command, images/s", lambda line: number(line["images_per_s"])),
    "command-12mp": ("photos of 12 MP, whole command, images/s", lambda line: number(line["images_per_s"])),
    "start-first": ("first start, imports + first vector, s", lambda line: start(line)),
    "start-again": ("next start, imports + first vector, s", lambda line: start(line)),
    "memory": ("peak memory, MB", lambda line: f"{line['peak_mb']:,}"),
}


def read(path: Path) -> list[Line]:
    """The newest line of each kind, of a file of results."""
    lines = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines() if text]
    return [group[-1] for group in by_key(lines, lambda line: (*of_machine(line), *of_row(line))).values()]


def of_machine(line: Line) -> tuple[str, ...]:
    """What tells machines apart."""
    machine = line["machine"]
    return line["device"], machine["cpu"], str(machine["cores"])


def of_row(line: Line) -> tuple[str, ...]:
    """What tells measurements on a machine apart."""
    return line["row"], line["model"], line["peer"], line["precision"]


def markdown(lines: list[Line], *, judged: bool = True) -> str:
    """Tables for each machine: encode and the other rows; if `judged`, also the bar, and what has no number."""
    sections = []
    for group in by_key(lines, of_machine).values():
        ours = [p for p in PRECISIONS if any(line["peer"] == OURS and line["precision"] == p for line in group)]
        parts = [heading(group), encode_table(group, ours), other_rows(group, ours)]
        if judged:
            parts += [bar_table(group), problems(group)]
        sections.append("\n\n".join(part for part in parts if part))
    return "\n\n".join(sections) + "\n"


def replaced(text: str, shown: str) -> str:
    """A document with what is between its markers replaced.

    Raises:  ValueError where it has no markers.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"document: found no single pair of {BEGIN} and {END}, expected one. Put them in.")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{shown}{END}{rest.partition(END)[2]}"


def heading(lines: list[Line]) -> str:
    """The machine, when and at which commit, and what the reference was."""
    machine, last = lines[0]["machine"], max(lines, key=lambda line: line["date"])
    gpu = next((f"{line['gpu']}, " for line in lines if line.get("gpu")), "")
    reference = next((line for line in references(lines) if "versions" in line), None)
    theirs = f", torch {reference['versions']['torch']}" if reference else ""
    turns = max((line.get("turns", 0) for line in lines), default=0)
    flags = " ".join(machine["flags"])
    busy = max((line.get("busy_cores", 0.0) for line in lines), default=0.0)
    return (
        f"{gpu}{machine['cpu']}, {machine['cores']} cores ({flags}); {last['date'][:10]}, commit {last['commit']};"
        f" medians of {turns} interleaved turns. `openai` is OpenAI's own code in {REFERENCE_PRECISION[last['device']]}"
        f"{theirs}; ratios are to it. Other programs kept {busy:.1f} cores busy at most."
    )


def encode_table(lines: list[Line], precisions: list[str]) -> str:
    """Models by precisions: ours, the fastest other, the share of the ceiling."""
    measured = [line for line in lines if line["row"] == "encode"]
    if not measured:
        return ""
    head = ["encode, images/s (ratio)", "batch", "openai"]
    for precision in precisions:
        head += [f"ours {precision}", f"fastest other {precision}", "GEMM share"]
    rows = []
    for model, group in by_key(measured, lambda line: line["model"]).items():
        reference = next(iter(references(group)), None)
        batch = next((str(line["batch"]) for line in group if "batch" in line), NONE)
        row = [model, batch, number(reference["images_per_s"]) if reference else NONE]
        for precision in precisions:
            other = fastest_other(group, "encode", model, precision)
            share = value(group, "encode", model, OURS, precision, "gemm_share")
            row += [rate(one(group, OURS, precision)), named(other), f"{share:.0%}" if share else NONE]
        rows.append(row)
    return grid(head, rows)


def other_rows(lines: list[Line], precisions: list[str]) -> str:
    """The other rows by model: the reference, and ours, with decode=fast in a line of its own."""
    head = ["", "model", "openai", *(f"ours {precision}" for precision in precisions)]
    rows = []
    for row, (what, show) in ROWS.items():
        measured = [line for line in lines if line["row"] == row]
        for model, group in by_key(measured, lambda line: line["model"]).items():
            reference = next(iter(references(group)), None)
            for peer, way in ((OURS, ""), (OURS_FAST, ", decode=fast")):
                found = [one(group, peer, precision) for precision in precisions]
                ratios = [f" ({ours['ratio']:.2f}x)" if ours and "ratio" in ours else "" for ours in found]
                cells = [show(ours) + ratio if ours else NONE for ours, ratio in zip(found, ratios, strict=True)]
                if peer == OURS or any(found):
                    rows.append([what + way, model, show(reference) if reference else NONE, *cells])
    return grid(head, rows) if rows else ""


def bar_table(lines: list[Line]) -> str:
    """What is asked, what was found, and whether that is enough."""
    rows = [
        [
            verdict.bar.what,
            models_of(verdict),
            verdict.precision,
            asked_of(verdict),
            found_in(verdict),
            outcome(verdict),
        ]
        for verdict in verdicts(lines)
    ]
    faster = faster_peers(lines)
    where = "; ".join(
        f"{other['peer']} at {ours['row']} {ours['model']} {ours['precision']}"
        f" ({other.get('ratio', 0):.2f} to {ours.get('ratio', 0):.2f})"
        for ours, other in faster
    )
    said = "open" if not compared(lines) else "missed" if faster else "reached"
    rows.append(["no peer is faster", "all measured", "same", "none", where or "none", said])
    return grid(["the bar", "model", "precision", "asked", "found", ""], rows)


def models_of(verdict: Verdict) -> str:
    """The model, or that it is a mean."""
    models = verdict.bar.models
    return models[0] if len(models) == 1 else f"geometric mean of {len(models)}"


def asked_of(verdict: Verdict) -> str:
    """The limit."""
    sign = "at most" if verdict.bar.most else "at least"
    return f"{sign} {number(verdict.bar.asked[verdict.precision])}"


def found_in(verdict: Verdict) -> str:
    """The number, and how many models are missing from it."""
    if verdict.found is None:
        return "not measured"
    total = len(verdict.bar.models)
    part = f" ({total - len(verdict.missing)} of {total} measured)" if verdict.missing else ""
    return number(verdict.found) + part


def outcome(verdict: Verdict) -> str:
    """Reached or missed; what was not measured is neither."""
    if verdict.found is None or verdict.missing:
        return "open"
    return "reached" if verdict.reached else "missed"


def problems(lines: list[Line]) -> str:
    """What took part and has no number that counts."""
    found = by_key([line for line in lines if not counts(line)], lambda line: (line["peer"], line["problem"]))
    shown = []
    for (peer, problem), group in found.items():
        where = ", ".join(dict.fromkeys(f"{line['row']} {line['model']} {line['precision']}" for line in group))
        shown.append(f"- {peer}, {where}: {problem[:MAX_PROBLEM]}")
    return "Without a number:\n\n" + "\n".join(shown) if shown else ""


def one(lines: list[Line], peer: str, precision: str) -> Line | None:
    """A peer's line at a precision, if it counts."""
    found = [line for line in lines if (line["peer"], line["precision"]) == (peer, precision) and counts(line)]
    return found[0] if found else None


def references(lines: list[Line]) -> list[Line]:
    """Those of OpenAI's own code at its own precision, that count."""
    found = [one(lines, REFERENCE, REFERENCE_PRECISION[line["device"]]) for line in lines[:1]]
    return [line for line in found if line is not None]


def rate(line: Line | None) -> str:
    """Images per second and the ratio."""
    if line is None:
        return NONE
    return number(line["images_per_s"]) + (f" ({line['ratio']:.2f}x)" if "ratio" in line else "")


def named(line: Line | None) -> str:
    """A peer and how fast it is."""
    return f"{line['peer']} {rate(line)}" if line else NONE


def start(line: Line) -> str:
    """Imports and the first vector, in seconds."""
    return f"{line['imports_s']:.2f} + {line['first_vector_s']:.2f}"


def number(amount: float) -> str:
    """Three digits, thousands with commas."""
    return f"{amount:,.0f}" if amount >= 100 else f"{amount:.3g}"


def grid(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
