from stories.conftest import environment, listener, sandbox, service

__all__ = ["environment", "listener", "sandbox", "service"]
