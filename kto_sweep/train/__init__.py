"""The worker's side: torch, never wandb."""
