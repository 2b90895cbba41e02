"""`modelfleet`: one command over the functions that the Pulumi program uses too.

The only place where our errors are caught and worded: exit code 1 for the user's input, 2 for the environment.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import output
from serving.config.errors import EXIT_ENVIRONMENT, EXIT_INPUT, InputErrors, ModelfleetError

app = typer.Typer(
    name="modelfleet",
    help="One YAML per model, one `pulumi up` per environment.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

Stack = Annotated[str, typer.Option("--stack", "-s", metavar="ENV", help="The stack: stacks/Pulumi.ENV.yaml.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command()
def check(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Model files or folders; default models/.", show_default=False)
    ] = None,
    stack: Annotated[
        str | None, typer.Option("--stack", "-s", metavar="ENV", help="Check the stack's file and its models too.")
    ] = None,
    json: Json = False,
    fix: Annotated[
        bool, typer.Option("--fix", help="Rewrite old names to today's; comments and order are kept.")
    ] = False,
) -> None:
    """Find every mistake in model and stack files, with its line and the fix.

    Example: `modelfleet check models/ --stack prod`
    """
    from cli.check import run_check

    raise typer.Exit(run_check(paths or [], stack=stack, as_json=json, fix=fix))


@app.command()
def plan(
    stack: Stack = "local",
    json: Json = False,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write one self-contained page.")] = None,
    diff: Annotated[
        str | None, typer.Option("--diff", metavar="REV", help="Show what changed since a git revision.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="With --diff: Markdown for a pull request.")] = False,
    pin: Annotated[bool, typer.Option("--pin", help="Write the chosen instance types into the stack file.")] = False,
    preflight: Annotated[
        bool, typer.Option("--preflight", help="Ask AWS for quotas, offerings and the account too.")
    ] = False,
) -> None:
    """Show what a stack will be and what it costs; nothing is made.

    Example: `modelfleet plan --stack prod --html plan.html`
    """
    from cli.plan import run_plan

    raise typer.Exit(
        run_plan(stack, as_json=json, html=html, diff=diff, markdown=markdown, pin=pin, preflight=preflight)
    )


@app.command()
def up(stack: Stack = "local") -> None:
    """Bring a stack up and print its endpoint; run again, it changes only what differs.

    Example: `modelfleet up --stack local`
    """
    from cli.up import run_up

    raise typer.Exit(run_up(stack))


@app.command()
def down(stack: Stack = "local") -> None:
    """Take away what `up` made, and only that.

    Example: `modelfleet down --stack local`
    """
    from cli.up import run_down

    raise typer.Exit(run_down(stack))


@app.command()
def status(stack: Stack = "local", json: Json = False) -> None:
    """Say what runs: models, replicas, endpoint.

    Example: `modelfleet status --json`
    """
    from cli.up import run_status

    raise typer.Exit(run_status(stack, as_json=json))


@app.command()
def render(
    model: Annotated[Path, typer.Argument(help="A model file.")],
    messages: Annotated[Path, typer.Argument(help="A JSON file: a list of chat messages.")],
    tokens: Annotated[bool, typer.Option("--tokens", help="Print token ids too; needs the model's tokenizer.")] = False,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", metavar="FOLDER", help="Where the tokenizer is; default the Hub.")
    ] = None,
) -> None:
    """Print the exact prompt that a chat request becomes.

    Example: `modelfleet render models/meta-llama--Llama-2-7b-chat-hf.yaml messages.json`
    """
    from cli.render import run_render

    raise typer.Exit(run_render(model, messages, tokens=tokens, tokenizer=tokenizer))


def main() -> None:
    """Entry point of the `modelfleet` script."""
    # A wrong option is the user's input like a wrong key; typer itself would exit with 2, our code for the environment.
    usage_error: Any = typer.BadParameter.__base__
    usage_error.exit_code = EXIT_INPUT
    try:
        app()
    except InputErrors as error:
        output.show_findings(error.findings)
        sys.exit(error.exit_code)
    except ModelfleetError as error:
        output.say(str(error), "bold red")
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        output.say("stopped; run the same command again to go on")
        sys.exit(EXIT_ENVIRONMENT)


if __name__ == "__main__":
    main()
