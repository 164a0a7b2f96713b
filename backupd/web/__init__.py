"""What the daemon answers over HTTP: the status page, its JSON, metrics and health. It only reads."""
