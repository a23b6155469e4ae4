"""Shell completion: click's own scripts."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from x402_mask.cli._faults import Failure


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    For bash: eval "$(x402-mask completion bash)". For zsh the same with zsh. For fish:
    x402-mask completion fish > ~/.config/fish/completions/x402-mask.fish
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise Failure(f"click knows no completion for {shell}")
    root = ctx.find_root()
    made = kind(root.command, {}, "x402-mask", "_X402_MASK_COMPLETE")
    try:
        script = made.source()
    except RuntimeError as exc:
        raise Failure(str(exc)) from exc
    click.echo(script)
