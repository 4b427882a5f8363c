"""From text to a submission in one command: stages that are commands of their own, done once."""
