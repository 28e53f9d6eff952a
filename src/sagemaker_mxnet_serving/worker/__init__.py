"""The processes that run models: one loads a model and forks others, which predict."""
