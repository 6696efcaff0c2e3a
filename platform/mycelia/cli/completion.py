"""Shell completion, made from the command's own parser, so that it cannot fall behind."""

from __future__ import annotations

import argparse

__all__ = ["SHELLS", "completion_script", "words_of"]

SHELLS = ("bash", "zsh", "fish")


def words_of(parser: argparse.ArgumentParser) -> dict[str, list[str]]:
    """For each command path ("", "call", "broker start", …) the words that may follow: sub-commands and options."""
    words: dict[str, list[str]] = {}

    def visit(path: str, current: argparse.ArgumentParser) -> None:
        found: list[str] = []
        for action in current._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name, child in action.choices.items():
                    found.append(name)
                    visit(f"{path} {name}".strip(), child)
            found.extend(option for option in action.option_strings if option.startswith("--"))
            if action.choices and not isinstance(action, argparse._SubParsersAction):
                found.extend(map(str, action.choices))
        words[path] = found

    visit("", parser)
    return words


def completion_script(shell: str, parser: argparse.ArgumentParser) -> str:
    """The script to source: `source <(mycelia completion bash)`."""
    words = words_of(parser)
    if shell == "fish":
        return _fish(words)
    cases = "\n".join(
        f'    "{path}") words="{" ".join(found)}" ;;' for path, found in words.items()
    )
    function = f"""_mycelia() {{
  local path="" word words="" paths=" {" | ".join(p for p in words if p)} "
  for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    case "$word" in -*) continue ;; esac
    case "$paths" in *" ${{path:+$path }}$word "*) path="${{path:+$path }}$word" ;; esac
  done
  case "$path" in
{cases}
  esac
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
  if [ ${{#COMPREPLY[@]}} -eq 0 ]; then COMPREPLY=($(compgen -f -- "${{COMP_WORDS[COMP_CWORD]}}")); fi
}}
complete -F _mycelia mycelia
"""
    if shell == "zsh":
        return (
            "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"
            + function
        )
    return function


def _fish(words: dict[str, list[str]]) -> str:
    lines = []
    for path, found in words.items():
        condition = (
            f"__fish_seen_subcommand_from {path.split()[-1]}" if path else "__fish_use_subcommand"
        )
        for word in found:
            option = f"-l {word[2:]}" if word.startswith("--") else f"-a {word}"
            lines.append(f"complete -c mycelia -n '{condition}' {option}")
    return "\n".join(lines) + "\n"
