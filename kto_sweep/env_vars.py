"""Every environment variable that users may set, with its effect."""

from collections.abc import Mapping

VARIABLES: Mapping[str, str] = {
    "KTO_SWEEP_HOME": "folder of kto-sweep's files on this box; default `~/.kto-sweep`",
    "WANDB_API_KEY": "key for W&B or for another box's embedded server; with a key, commands use W&B",
    "WANDB_BASE_URL": "URL of the server, if it is not W&B's cloud",
    "WANDB_MODE": "`offline` or `disabled`: nothing leaves the box, and commands use its embedded server; "
    "with `offline`, `train` writes its run for `wandb sync`",
    "WANDB_IDENTITY_TOKEN_FILE": "W&B login with an identity token instead of a key",
    "WANDB_LOG_MODEL": "`end`: log each trial's final adapters as an artifact of its run; `checkpoint`: its "
    "checkpoints too, each as a version; default `false`",
    "WANDB_DISABLE_GIT": "`true`: do not record the git commit",
    "WANDB_SAVE_CODE": "`true`: upload the program and the changes since the git commit to W&B",
    "HF_TOKEN": "Hugging Face token, for gated models and private data",
    "HF_HUB_OFFLINE": "`1`: use only models and data in the hub's cache on this box",
    "HF_HOME": "folder of the hub's cache; default `~/.cache/huggingface`",
    "CUDA_VISIBLE_DEVICES": "GPUs that an agent uses without `--gpus`; default all",
    "PYTORCH_ALLOC_CONF": "torch's allocator settings; `expandable_segments:True` is added if unset",
    "OMP_NUM_THREADS": "CPU threads of a worker; default 4 with a GPU, else one per core",
    "NO_COLOR": "any value: no colours",
}
