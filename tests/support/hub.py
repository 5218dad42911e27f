"""A stand-in for the Hugging Face hub."""


class FakeHub:
    """huggingface_hub's `HfApi`: keeps (hub id, names of the files) of each upload in `uploads`."""

    uploads, fails = [], False

    def whoami(self):
        return {"name": "someone"}

    def create_repo(self, repo_id, exist_ok):
        assert exist_ok

    def upload_folder(self, repo_id, folder_path, commit_message):
        if self.fails:
            raise ConnectionError("no route")
        self.uploads.append((repo_id, sorted(path.name for path in folder_path.iterdir())))
