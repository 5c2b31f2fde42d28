"""A pipeline's files from the Hugging Face Hub, all of one commit."""

from huggingface_hub import snapshot_download


def fetch_without_code(repo_id: str, **kwargs) -> str:
    """Folder in the local cache with the weights and configs of a Hub repository, and none of its code.

    Args:
        repo_id: ``"user/name"``.
        kwargs: As for `diffusers.DiffusionPipeline.download`; ``revision``, ``variant``, ``token``, ``cache_dir``,
            ``force_download`` and ``local_files_only`` count.
    """
    return snapshot_download(
        repo_id,
        revision=kwargs.get("revision"),
        cache_dir=kwargs.get("cache_dir"),
        token=kwargs.get("token"),
        force_download=kwargs.get("force_download") or False,
        local_files_only=kwargs.get("local_files_only") or False,
        allow_patterns=["model_index.json", "*/*.json", "*/*.safetensors", "*/*.txt", "*/*.model", "*/*.jinja"],
        ignore_patterns=None if kwargs.get("variant") else ["*/*.*.safetensors", "*/*.index.*.json"],
    )
