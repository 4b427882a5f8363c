"""Processes that train one run together: who they are, what they tell each other, how a model is spread over them."""
