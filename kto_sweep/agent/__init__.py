"""The supervisor's side: wandb, never torch."""
