from stories.conftest import environment, sandbox, service

__all__ = ["environment", "sandbox", "service"]
