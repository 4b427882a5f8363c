"""What a trained model is worth: held-out loss now, downstream tasks later."""
