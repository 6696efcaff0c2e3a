"""All that exists for classes written for Nameko. No other floor knows of it.

Importing this package hands its reader of declarations to the runtime. Nothing of Nameko is imported: that happens
when a service declares one of its extensions, and so has imported it (docs/decisions/0006).

The words, one for each idea:

| word | means |
|---|---|
| foreign | written for Nameko: a declaration on a service class, or the instance bound from it |
| stock | of Nameko's own package (`nameko.rpc.Rpc`); a foreign class may derive from a stock one |
| counterpart | the Mycelia extension that does a foreign one's work in our container |
| bridged | said of a counterpart that does so by calling the foreign extension's own hooks |
| face | what foreign extensions are bound to, in the container's place |

What runs a declaration on a service class:

| declared | counterpart |
|---|---|
| one of the stock classes in `counterparts.py`, or a subclass that only adds to it | Mycelia's extension of the same kind |
| a dependency provider that overrides what such a class does | a bridged one; `super()` reaches Mycelia's |
| … and asks for more of it than that, or of a class that has been patched | a bridged one; `super()` reaches Nameko's |
| an entrypoint of either kind, or any other foreign extension | a bridged one |
"""

from mycelia.nameko.context import AuthToken, ContextData, Language, UserAgent, UserId
from mycelia.nameko.declarations import NamekoDeclarations
from mycelia.runtime import register_foreign_declarations

__all__ = ["AuthToken", "ContextData", "Language", "UserAgent", "UserId"]

register_foreign_declarations(NamekoDeclarations())
