"""A damaged small file ends in one error that names it, says what is wrong and what to do."""

import json

import pytest

from demo_diffusion.records.reading import read_parsed
from tests.support.damage import DAMAGES


def steps_of(text: str) -> list[int]:
    return [row["step"] + 0 for row in json.loads(text)["rows"]]


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_is_one_error(tmp_path, damage):
    file = tmp_path / "steps.json"
    file.write_text('{"rows": [{"step": 1}, {"step": 2}]}')
    assert read_parsed(file, steps_of, "") == [1, 2]
    DAMAGES[damage](file)
    with pytest.raises(ValueError, match=r"steps.json cannot be read: (?s:.+) Bring back a copy.$"):
        read_parsed(file, steps_of, "Bring back a copy.")
