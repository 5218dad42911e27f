"""A hub that keeps what is uploaded to it."""

import pytest

from demo_diffusion.train.engine import hub


class FakeHub:
    """In place of huggingface_hub's `HfApi`.

    Attributes:
        uploads: (hub id, names of the files) of each upload.
        fails: whether uploads fail.
    """

    uploads: list[tuple[str, set[str]]]
    fails: bool

    def whoami(self):
        return {"name": "someone"}

    def create_repo(self, repo_id, exist_ok):
        assert exist_ok

    def upload_folder(self, repo_id, folder_path, commit_message):
        if self.fails:
            raise ConnectionError("no route")
        self.uploads.append((repo_id, {path.name for path in folder_path.iterdir()}))


def use_fake_hub(monkeypatch: pytest.MonkeyPatch) -> type[FakeHub]:
    """An empty hub that trainings upload to, for the time of a test."""
    fake = type("EmptyHub", (FakeHub,), {"uploads": [], "fails": False})
    monkeypatch.setattr(hub, "HfApi", fake)
    return fake
