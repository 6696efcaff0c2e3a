"""All that exists for classes written for Nameko: importing it registers what runs them.

Nothing of Nameko is imported here: that happens when a service declares one of its extensions, and so has imported it.
"""

from mycelia.nameko import bridge, web  # noqa: F401  they register themselves
from mycelia.nameko.context import AuthToken, ContextData, Language, UserAgent, UserId

__all__ = ["AuthToken", "ContextData", "Language", "UserAgent", "UserId"]
