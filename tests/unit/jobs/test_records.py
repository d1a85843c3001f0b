"""The records of clip.jobs: documented field by field, strict about words and numbers, the same from `clip`."""

import pydoc
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
from kit.jobs import change_job, embed_job, tune_job

import clip
from clip import jobs
from clip.errors import InputError
from clip.jobs import (
    ClassifyJob,
    Columns,
    DecodeOptions,
    DemoJob,
    EmbedJob,
    ExportJob,
    FetchJob,
    Limits,
    ModelOptions,
    OutputPolicy,
    SearchJob,
    TuneJob,
    VerifyJob,
)
from clip.jobs.fields import field_docs, nest

RECORDS = [getattr(jobs, name) for name in jobs.__all__]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_every_field_has_a_docstring_that_help_shows(record: type) -> None:
    assert is_dataclass(record)
    docs = field_docs(record)
    assert list(docs) == [field.name for field in fields(record)]
    shown = pydoc.plain(pydoc.render_doc(record))
    for name, text in docs.items():
        assert text.endswith("."), f"{name}: a sentence"
        assert text[0].isupper() or text.split(":")[0].islower(), f"{name}: a sentence, or a word that it explains"
        assert name in shown
        assert text.splitlines()[0] in shown, name
    assert (record.__doc__ or "").splitlines()[0] in shown


def test_the_records_are_also_names_of_clip() -> None:
    names = [name for name in dir(clip) if name.endswith(("Job", "Report")) or name in ("Hit", "Classified")]
    assert len(names) == 22
    for name in names:
        assert getattr(clip, name) is getattr(jobs, name)


def test_a_model_may_be_given_by_its_name_alone() -> None:
    by_name, by_options = (EmbedJob(source="a", output="b", model=one) for one in ("x", ModelOptions("x")))
    assert by_name.model_options == by_options.model_options == ModelOptions("x")
    assert ModelOptions.of("x") == ModelOptions.of(ModelOptions("x")) == ModelOptions("x")
    assert EmbedJob(source="a", output="b").model_options == ModelOptions()
    assert TuneJob(source="a", model="x").model_options == ModelOptions("x")


def test_a_job_has_one_input_or_several() -> None:
    assert EmbedJob(source="a", output="b").inputs == ("a",)
    assert EmbedJob(source=["a", "b"], output="c").inputs == TuneJob(source=("a", "b")).inputs == ("a", "b")


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: ModelOptions(precision="fp64"), "precision"),  # type: ignore[arg-type]
        (lambda: ModelOptions(batch_size=0), "batch_size"),
        (lambda: ModelOptions(threads=-1), "threads"),
        (lambda: ModelOptions(threads=5000), "threads"),
        (lambda: ModelOptions(untrained=-1), "untrained"),
        (lambda: ModelOptions(untrained=2**63), "untrained"),
        *((lambda name=name: Limits(**{name: 0}), name) for name in ("max_bytes", "max_pixels", "max_frames")),
        (lambda: Limits(max_aspect=0.5), "max_aspect"),
        *(
            (lambda name=name: DecodeOptions(**{name: "other"}), name)
            for name in ("pixels", "orient", "background", "sixteen_bit", "frames")
        ),
        (lambda: OutputPolicy(shard_size=0), "shard_size"),
        (lambda: OutputPolicy(dtype="float64"), "dtype"),  # type: ignore[arg-type]
        *((lambda name=name: embed_job(source="a", output="b", **{name: 0}), name) for name in ("workers", "limit")),
        (lambda: embed_job(source="a", output="b", readers=101), "readers"),
        (lambda: embed_job(source="a", output="b", decode_budget_bytes=0), "decode_budget_bytes"),
        (lambda: embed_job(source="a", output="b", on_failure="ignore"), "on_failure"),
        (lambda: embed_job(source="a", output="b", long_text="other"), "long_text"),
        (lambda: embed_job(source="a", output="b", duplicate_ids="drop"), "duplicate_ids"),
        (lambda: embed_job(source="a", output="b", max_failures="some"), "max_failures"),
        (lambda: embed_job(source="a", output="b", min_cosine=2.0), "min_cosine"),
        (lambda: embed_job(source="a", output="b", calibration="c"), "calibration"),
        (lambda: embed_job(source="a", output="b", update=True, overwrite=True), "update"),
        (lambda: embed_job(source="a", output="b", update=True, duplicate_ids="keep"), "update"),
        (lambda: embed_job(source="a", output="b", max_seconds=1.0), "max_seconds"),
        (lambda: embed_job(source="a", output="b", texts=True, precision="int8"), "precision"),
        (lambda: embed_job(source="a", output="b", keep="year"), "keep"),
        (lambda: tune_job(source="a", images=15), "images"),
        (lambda: tune_job(source="a", min_cosine=0.0), "min_cosine"),
        (lambda: SearchJob(output="a", texts=("b",), k=0), "k"),
        (lambda: SearchJob(output="a", texts=("b",), min_score=float("nan")), "min_score"),
        (lambda: SearchJob(output="a", texts=("b",), contact_sheet="a.jpg"), "contact_sheet"),
        (lambda: ClassifyJob(source="a", labels="b,c", k=0), "k"),
        (lambda: ClassifyJob(source="a", labels="b,c", template=("{}",), templates="openai7"), "templates"),
        (lambda: DemoJob(scenes=49), "scenes"),
        (lambda: FetchJob(), "names"),
        (lambda: FetchJob(names=("a", "b"), to="c.safetensors"), "to"),
        (lambda: VerifyJob(output="a", sample=-1), "sample"),
        (lambda: ExportJob(output="a", target="b", format="xml"), "format"),  # type: ignore[arg-type]
    ],
)
def test_wrong_words_and_numbers_are_refused_by_the_name_of_their_field(make: Any, field: str) -> None:
    with pytest.raises(InputError) as refused:
        make()
    assert refused.value.item == f"`{field}`"
    assert str(refused.value).startswith(f"{field}: found ")
    assert refused.value.remedy.endswith(".")


@pytest.mark.parametrize("given", [{"isolate": True}, {"batch_size": 5}, {"orient": "exif"}, {"text_column": "a"}])
def test_texts_take_no_options_of_images(given: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="options of images"):
        embed_job(source="a", output="b", texts=True, **given)
    assert embed_job(source="a", output="b", texts=True, device="cpu", threads=2, shard_size=3).kind == "texts"


def test_an_unknown_option_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="batchsize"):
        EmbedJob(source="a", output="b", batchsize=2)  # type: ignore[call-arg]


def test_flat_options_become_nested_ones() -> None:
    flat = {"source": "a", "output": "b", "limits__max_bytes": 3, "limits__max_pixels": 4, "model__name": "x"}
    job = EmbedJob(**nest(EmbedJob, flat))
    assert job == EmbedJob(source="a", output="b", limits=Limits(3, 4), model=ModelOptions("x"))
    assert change_job(job, max_bytes=5, column="c").limits == Limits(5, 4)
    assert change_job(job, column="c").columns == Columns("c")


def test_allowed_failures_are_a_number_or_a_part() -> None:
    for options, allowed in [
        ({}, 200),
        ({"max_failures": "7"}, 7),
        ({"max_failures": "2.5%"}, 5),
        ({"on_failure": "stop", "max_failures": "7"}, 0),
    ]:
        assert embed_job(source="a", output="b", **options).allowed_failures(200) == allowed
