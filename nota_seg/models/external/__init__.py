"""Models that stand on other libraries, through the same `create_model` and verbs."""
