"""Uploads a result to the Hugging Face hub, after a check at the start that this will work."""

from pathlib import Path

from huggingface_hub import HfApi


def check_hub_access() -> None:
    """Checks that a later upload can work.

    Raises:
        ValueError: without a token or network access.
    """
    try:
        HfApi().whoami()
    except Exception as error:  # the hub, its HTTP library and the system raise different ones
        raise ValueError(
            f"push_to_hub needs the hub, which does not answer: {error} Log in with `hf auth login`, or leave "
            "push_to_hub out and upload later."
        ) from error


def upload(folder: Path, repo_id: str) -> None:
    """Uploads a folder as a model, and leaves the folder as it is.

    Raises:
        OSError: if the upload fails.
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
