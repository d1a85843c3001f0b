"""Which part of a run a process does, by its text and by what schedulers set."""

import pytest
from kit.jobs import embed_job

from clip.errors import InputError
from clip.jobs.part import PartOf, parse_part

SLURM = {"SLURM_ARRAY_TASK_ID": "13", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "10"}


def test_a_part_is_its_number_from_0_and_how_many_there_are() -> None:
    assert parse_part("3/8", {}) == PartOf(3, 8)
    assert str(PartOf(3, 8)) == "3/8"
    assert [[*PartOf(part, 3).choose(7)] for part in range(3)] == [[0, 3, 6], [1, 4], [2, 5]]


@pytest.mark.parametrize(
    ("environment", "text", "expected"),
    [
        (SLURM, "auto", PartOf(3, 4)),
        ({**SLURM, "SLURM_ARRAY_TASK_STEP": "3"}, "auto", PartOf(1, 4)),
        (
            {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "1", "SLURM_ARRAY_TASK_MIN": "5"},
            "auto/8",
            PartOf(5, 8),
        ),
        ({"JOB_COMPLETION_INDEX": "2", "JOB_COMPLETIONS": "8"}, "auto", PartOf(2, 8)),
        ({"JOB_COMPLETION_INDEX": "2"}, "auto/8", PartOf(2, 8)),
        ({"AWS_BATCH_JOB_ARRAY_INDEX": "7", "AWS_BATCH_JOB_ARRAY_SIZE": "8"}, "auto", PartOf(7, 8)),
    ],
)
def test_schedulers_say_which_part_it_is(environment: dict[str, str], text: str, expected: PartOf) -> None:
    assert parse_part(text, environment) == expected


@pytest.mark.parametrize(
    ("environment", "text", "found"),
    [
        ({}, "auto", "none of SLURM_ARRAY_TASK_ID"),
        ({"JOB_COMPLETION_INDEX": "2"}, "auto", "without JOB_COMPLETIONS"),
        ({"JOB_COMPLETION_INDEX": "x"}, "auto/8", "JOB_COMPLETION_INDEX='x'"),
        ({}, "8/8", "a number from 0 to 7"),
        ({}, "0/0", "1 to 1,000,000 parts"),
        ({}, "3", "found '3'"),
        ({}, "-1/8", "found '-1/8'"),
        ({}, "1/8 ", "found '1/8 '"),
        ({}, "", "found ''"),
    ],
)
def test_any_other_text_is_refused(environment: dict[str, str], text: str, found: str) -> None:
    with pytest.raises(InputError, match="part") as caught:
        parse_part(text, environment)
    assert found in str(caught.value)


@pytest.mark.parametrize("options", [{"overwrite": True}, {"update": True}, {"min_cosine": 0.999}, {"source": "-"}])
def test_a_run_that_only_one_process_can_do_has_no_parts(options: dict[str, object]) -> None:
    with pytest.raises(InputError, match="a run that several processes can share"):
        embed_job(**{"source": "photos", "output": "out", "part": "0/2", **options})
