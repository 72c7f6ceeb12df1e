"""Access to W&B or the embedded server through the wandb SDK: connection, private calls, a sweep's runs."""
