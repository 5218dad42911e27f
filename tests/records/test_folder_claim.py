"""A folder goes on with the facts that its content was made with, and with no others."""

import pytest

from demo_diffusion.records.files import read_json
from demo_diffusion.records.folder_claim import claim_folder, compare_facts, differences

FACTS = {"size": 3, "range": (0, 1), "name": "a"}


def begin(folder) -> None:
    (folder / "shards").mkdir()
    (folder / "shards/000000.safetensors").touch()


def test_the_same_facts_go_on(tmp_path):
    file = tmp_path / "new/folder/facts.json"
    claim_folder(file, FACTS, "things")
    assert read_json(file) == {"size": 3, "range": [0, 1], "name": "a"}
    begin(file.parent)
    claim_folder(file, FACTS, "things")
    assert differences(file, FACTS) == []


def test_other_facts_are_refused_once_there_is_work(tmp_path):
    file, others = tmp_path / "facts.json", {**FACTS, "size": 4, "more": None, "new": 1}
    claim_folder(file, FACTS, "things")
    claim_folder(file, others, "things")  # a mistake that was found before work began spoils nothing
    claim_folder(file, FACTS, "things")
    begin(tmp_path)
    expected = r"holds things of other settings: size \(was 3, now 4\); new \(was None, now 1\)\. Choose another --out"
    with pytest.raises(ValueError, match=expected):
        claim_folder(file, others, "things")
    assert read_json(file)["size"] == 3


def test_what_is_compared_can_be_chosen(tmp_path):
    file = tmp_path / "facts.json"
    claim_folder(file, FACTS, "things")
    begin(tmp_path)

    def compare(saved: dict, now: dict) -> list[str]:
        return compare_facts({"size": saved["size"]}, {"size": now["size"]})

    claim_folder(file, {**FACTS, "name": "b"}, "things", compare)
    assert read_json(file)["name"] == "a"
    with pytest.raises(ValueError, match=r"size \(was 3, now 5\)"):
        claim_folder(file, {**FACTS, "size": 5}, "things", compare)


def test_other_folders_are_refused(tmp_path):
    (tmp_path / "0.demo_diffusion-x1234567.partial").mkdir()
    claim_folder(tmp_path / "facts.json", FACTS, "things")  # a killed process left the temporary folder
    assert [path.name for path in tmp_path.iterdir()] == ["facts.json"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other/photo.png").touch()
    for name in ("X.partial", "a.demo_diffusion-x1234567.partial"):  # files of a user
        mine = tmp_path / f"with {name}" / name
        mine.parent.mkdir()
        mine.touch()
        with pytest.raises(ValueError, match="is not empty and does not hold things"):
            claim_folder(mine.parent / "facts.json", FACTS, "things")
        assert mine.exists()
    lone = tmp_path / "lone/facts.json"
    lone.parent.mkdir()
    lone.write_text('{"mine": 1}')
    with pytest.raises(ValueError, match="lone is not empty and does not hold things"):
        claim_folder(lone, FACTS, "things")
    assert lone.read_text() == '{"mine": 1}'
    with pytest.raises(ValueError, match=r"other is not empty and does not hold things\. Choose another --out"):
        claim_folder(tmp_path / "other/facts.json", FACTS, "things")
    with pytest.raises(ValueError, match=r"photo\.png is not a folder that may be written to"):
        claim_folder(tmp_path / "other/photo.png/facts.json", FACTS, "things")


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "facts.json").write_text("{")
    begin(tmp_path)
    with pytest.raises(ValueError, match=r"facts\.json cannot be read"):
        claim_folder(tmp_path / "facts.json", FACTS, "things")
