"""The link to a broker in memory (`memory://`), on a clock that tests may drive."""

from mycelia.amqp.memory.link import MemoryLink

__all__ = ["MemoryLink"]
