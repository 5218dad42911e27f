"""The hub: whether it can be written to, and the upload of a result."""

from pathlib import Path

from huggingface_hub import HfApi


def check_hub_access() -> None:
    """Raises a ValueError if a later upload would fail for want of a token or of the internet."""
    try:
        HfApi().whoami()
    except Exception as error:  # of the hub, of its HTTP library, or of the system
        raise ValueError(
            f"push_to_hub needs the hub, which does not answer: {error} Log in with `hf auth login`, or leave "
            "push_to_hub out and upload later."
        ) from error


def upload(folder: Path, repo_id: str) -> None:
    """Uploads a folder as a model; what is on the disk stays, whatever happens.

    Raises:
        OSError: if it cannot be uploaded.
    """
    try:
        api = HfApi()
        api.create_repo(repo_id, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload by demo_diffusion")
    except Exception as error:
        raise OSError(
            f"{folder} cannot be uploaded to {repo_id}: {error} Later: hf upload {repo_id} {folder}"
        ) from error
    print(f"Uploaded {folder} to {repo_id}.")
