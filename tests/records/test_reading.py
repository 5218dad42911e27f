"""A damaged small file ends in one error that names it, says what is wrong and what to do."""

import json
import os

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


@pytest.mark.parametrize("device", ["pipe", "link to a pipe", "/dev/zero"])
def test_what_has_no_end_is_not_read(device, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link to a pipe").symlink_to("pipe")
    with pytest.raises(ValueError, match="cannot be read: .* is a pipe, a socket or a device; it must be a file. Then"):
        read_parsed(tmp_path / device, steps_of, "Then.")
