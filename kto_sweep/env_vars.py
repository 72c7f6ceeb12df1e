"""Every environment variable that a person may set, and what it does."""

from collections.abc import Mapping

VARIABLES: Mapping[str, str] = {
    "KTO_SWEEP_HOME": "where kto-sweep keeps its files on this box; by default `~/.kto-sweep`",
    "WANDB_API_KEY": "key of W&B or of another box's embedded server; with one, commands talk to W&B",
    "WANDB_BASE_URL": "address of the server, where it is not W&B's own cloud",
    "WANDB_MODE": "`offline` or `disabled`: nothing leaves the box, commands talk to its embedded server; "
    "with `offline`, `train` writes its run for `wandb sync`",
    "WANDB_IDENTITY_TOKEN_FILE": "W&B's login by identity token, in place of a key",
    "WANDB_LOG_MODEL": "`end`: upload each trial's final adapters as an artifact to W&B; "
    "the embedded server keeps none",
    "HF_TOKEN": "token of the Hugging Face hub, for gated models and private data",
    "HF_HUB_OFFLINE": "`1`: take models and data from the hub's cache on this box alone",
    "HF_HOME": "where that cache lies; by default `~/.cache/huggingface`",
    "CUDA_VISIBLE_DEVICES": "the GPUs that an agent uses where `--gpus` names none; by default all",
    "PYTORCH_ALLOC_CONF": "torch's memory settings; `expandable_segments:True` is added where it is not set",
    "OMP_NUM_THREADS": "a worker's threads on the host; by default 4 with a GPU, else one per core",
    "NO_COLOR": "anything: no colours",
}
