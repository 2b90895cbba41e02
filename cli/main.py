"""`modelfleet`: one command over the functions that the Pulumi program also uses.

It alone catches the command's errors and prints them: exit code 1 for the user's input, 2 for the environment.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

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
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.", show_default=False)],
    stacks: Annotated[
        str, typer.Option("--stacks", metavar="NAMES", help="Stacks on AWS besides `local`, with commas.")
    ] = "trial",
    ci: Annotated[Literal["github", "gitlab", "none"], typer.Option(help="Whose CI file to write.")] = "github",
    wheel: Annotated[
        Path | None, typer.Option(help="The wheel to pin; default: the one that is installed.", show_default=False)
    ] = None,
    local: Annotated[
        bool, typer.Option("--local/--no-local", help="Whether to pin what a stack on this machine needs, 6 GB.")
    ] = True,
) -> None:
    """Write a fleet: models, stacks and a pinned version in a folder of their own.

    Example: `modelfleet init fleet --stacks dev,prod`
    """
    from modelfleet.cli.init import run_init

    names = [name.strip() for name in stacks.split(",") if name.strip()]
    raise typer.Exit(run_init(folder, stacks=names, ci=ci, wheel=wheel, local=local))


@app.command()
def upgrade(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="VERSION|WHEEL", help="A version, or a wheel's path or URL; default: the newest version."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would change.")] = False,
    json: Json = False,
) -> None:
    """Raise the fleet's pinned version; first show what it changes in files, plans and what runs.

    Example: `modelfleet upgrade 0.2.0 --dry-run`
    """
    from modelfleet.cli.upgrade import run_upgrade

    raise typer.Exit(run_upgrade(target, dry_run=dry_run, as_json=json))


@app.command()
def check(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Model files, folders or globs; default: models/.", show_default=False)
    ] = None,
    stack: Annotated[
        str | None, typer.Option("--stack", "-s", metavar="ENV", help="Also check the stack's file and its models.")
    ] = None,
    json: Json = False,
    fix: Annotated[
        bool, typer.Option("--fix", help="Rewrite old names to current ones; keeps comments and order.")
    ] = False,
    recipes: Annotated[
        bool, typer.Option("--recipes", help="With --fix: also add what the model's recipe has and the file lacks.")
    ] = False,
    pin: Annotated[
        bool, typer.Option("--pin", help="With --fix: also write the commit that the Hub has now as the revision.")
    ] = False,
) -> None:
    """Find every mistake in model and stack files, with its line and the fix.

    Example: `modelfleet check models/ --stack prod`
    """
    from modelfleet.cli.check import run_check

    if recipes and not fix:
        raise typer.BadParameter(
            "goes with --fix; without it, check says what the recipes have", param_hint="--recipes"
        )
    if pin and not fix:
        raise typer.BadParameter("goes with --fix, for it changes model files", param_hint="--pin")
    raise typer.Exit(run_check(paths or [], stack=stack, as_json=json, fix=fix, recipes=recipes, pin=pin))


@app.command()
def plan(
    stack: Stack = "local",
    json: Json = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a self-contained HTML page.")
    ] = None,
    diff: Annotated[
        str | None, typer.Option("--diff", metavar="REV", help="Show what changed since a git revision.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="With --diff: Markdown for a pull request.")] = False,
    pin: Annotated[bool, typer.Option("--pin", help="Write the chosen instance types into the stack file.")] = False,
    preflight: Annotated[
        bool, typer.Option("--preflight", help="Also check account, quotas and offerings with AWS.")
    ] = False,
) -> None:
    """Show what a stack will be and what it costs; makes nothing.

    Example: `modelfleet plan --stack prod --html plan.html`
    """
    from modelfleet.cli.plan import run_plan

    raise typer.Exit(
        run_plan(stack, as_json=json, html=html, diff=diff, markdown=markdown, pin=pin, preflight=preflight)
    )


@app.command()
def manifests(
    stack: Stack = "local",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write one file per object, and the IAM documents.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the list of objects as JSON.")] = False,
) -> None:
    """Write the Kubernetes objects and IAM documents that `up` would apply, without a cluster or credentials.

    Secrets are placeholders. Without `--out` it prints one YAML stream.

    Example: `modelfleet manifests --stack prod --out rendered`
    """
    from modelfleet.cli.manifests import run_manifests

    raise typer.Exit(run_manifests(stack, out=out, as_json=json))


@app.command()
def observability(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="A new or empty folder for the files.")],
    stack: Stack = "local",
    json: Annotated[bool, typer.Option("--json", help="Print the files and alerts as JSON.")] = False,
) -> None:
    """Write alert rules, dashboards and, for target local, a Prometheus configuration.

    The alerts follow from the `slo` of each model file. On Kubernetes `modelfleet:observability` applies the same.

    Example: `modelfleet observability --stack local --out watch`
    """
    from modelfleet.cli.observability import run_observability

    raise typer.Exit(run_observability(stack, out=out, as_json=json))


@app.command()
def images(stack: Stack = "local", json: Json = False) -> None:
    """List the images that a stack's pods run, to copy them where nodes may pull from.

    Example: `modelfleet images --stack prod --json`
    """
    from modelfleet.cli.images import run_images

    raise typer.Exit(run_images(stack, as_json=json))


@app.command()
def up(stack: Stack = "local") -> None:
    """Bring a stack up and print its endpoint; a second run changes only what differs.

    Example: `modelfleet up --stack local`
    """
    from modelfleet.cli.up import run_up

    raise typer.Exit(run_up(stack))


@app.command()
def down(stack: Stack = "local") -> None:
    """Remove what `up` made, and nothing else.

    Example: `modelfleet down --stack local`
    """
    from modelfleet.cli.down import run_down

    raise typer.Exit(run_down(stack))


Yes = Annotated[bool, typer.Option("--yes", "-y", help="Write without asking.")]
Deploy = Annotated[bool, typer.Option("--up", help="Then deploy at once, as `modelfleet up`.")]


@app.command()
def promote(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model's id.", show_default=False)],
    source: Annotated[str, typer.Option("--from", metavar="ENV", help="The stack that proved it.")],
    target: Annotated[str, typer.Option("--to", metavar="ENV", help="The stack that gets it.")],
    yes: Yes = False,
    json: Json = False,
    up: Deploy = False,
) -> None:
    """Copy a model that one stack has proved to another: its file, weights, code and image, or say why not.

    A stack has proved what its last `modelfleet up` ended with. It writes files and deploys nothing without `--up`.

    Example: `modelfleet promote org/model --from staging --to prod`
    """
    from modelfleet.cli.changed_files import Answer
    from modelfleet.cli.promote import run_promote

    raise typer.Exit(run_promote(model, Answer(yes, json, up), source=source, target=target))


@app.command()
def rollback(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="One model's id; default: all.", show_default=False)
    ] = None,
    stack: Stack = "local",
    yes: Yes = False,
    json: Json = False,
    up: Deploy = False,
) -> None:
    """Bring back what the stack proved before: model files and weights.

    Without `--up` it deploys nothing; but from then on replicas that start load the weights that it turned back.

    Example: `modelfleet rollback org/model --stack prod --up`
    """
    from modelfleet.cli.changed_files import Answer
    from modelfleet.cli.rollback import run_rollback

    raise typer.Exit(run_rollback(model, Answer(yes, json, up), stack=stack))


@app.command()
def status(stack: Stack = "local", json: Json = False) -> None:
    """Show what runs: models, replicas, endpoint.

    Example: `modelfleet status --json`
    """
    from modelfleet.cli.status import run_status

    raise typer.Exit(run_status(stack, as_json=json))


@app.command()
def top(
    stack: Stack = "local",
    json: Json = False,
    once: Annotated[bool, typer.Option("--once", help="Print one page and end, as in a pipe.")] = False,
    window: Annotated[
        int, typer.Option("--window", metavar="SECONDS", min=1, max=600, help="Over how long rates are taken.")
    ] = 20,
) -> None:
    """Watch what a stack does now: requests, tokens, latency, KV cache and cards by model; nodes and USD; keys.

    Example: `modelfleet top --stack prod`
    """
    from modelfleet.cli.top import run_top

    raise typer.Exit(run_top(stack, once=once, as_json=json, window=window))


@app.command()
def doctor(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="Only this model: its id or file.", show_default=False)
    ] = None,
    stack: Stack = "local",
    json: Json = False,
    bundle: Annotated[
        Path | None,
        typer.Option("--bundle", metavar="FILE", help="Also write all evidence, redacted, for a colleague."),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Look every 5 s until Ctrl-C, and print only what changes.")
    ] = False,
) -> None:
    """Say why a stack or a model does not serve: the first cause, its evidence, the fix, and what happens then.

    Exit code 0: nothing to fix; 1: something to fix; 2: a layer could not be read. With --watch that of the last look.

    Example: `modelfleet doctor --stack prod`
    """
    from modelfleet.cli.doctor import run_doctor, watch_doctor

    if watch:
        if bundle is not None:
            raise typer.BadParameter("is of one look; leave out --watch", param_hint="--bundle")
        raise typer.Exit(watch_doctor(stack, model, as_json=json))
    raise typer.Exit(run_doctor(stack, model, as_json=json, bundle=bundle))


@app.command()
def render(
    model: Annotated[Path, typer.Argument(help="A model file.")],
    messages: Annotated[Path, typer.Argument(help="A JSON file: a list of chat messages.")],
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Also print token ids; needs the model's tokenizer.")
    ] = False,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", metavar="FOLDER", help="Folder of the tokenizer; default: the Hub.")
    ] = None,
) -> None:
    """Print the exact prompt that a chat request becomes.

    Example: `modelfleet render models/meta-llama--Llama-2-7b-chat-hf.yaml messages.json`
    """
    from modelfleet.cli.render import run_render

    raise typer.Exit(run_render(model, messages, tokens=tokens, tokenizer=tokenizer))


models = typer.Typer(
    help="The models that the catalog knows, and what each keeps on a GPU.", invoke_without_command=True
)
app.add_typer(models, name="models")


@models.callback()
def models_list(
    context: typer.Context,
    search: Annotated[
        str, typer.Option("--search", metavar="WORDS", help="Only models whose id, kind or licence has all of these.")
    ] = "",
    as_json: Json = False,
) -> None:
    """List the catalog's models, with the cheapest GPUs that hold each at two lengths, and their price.

    Example: `modelfleet models --search "embedding qwen"`
    """
    if context.invoked_subcommand is None:
        from modelfleet.cli.models_list import run_models

        raise typer.Exit(run_models(search, as_json=as_json))


@models.command(name="show")
def models_show(
    model: Annotated[str, typer.Argument(metavar="MODEL|FOLDER|CONFIG.JSON", help="An id, or a path.")],
    accelerator: Annotated[str | None, typer.Option(help="The card; default: the fewest of each.")] = None,
    gpus: Annotated[int, typer.Option(min=1, help="Tensor-parallel GPUs; figures are those of one.")] = 1,
    length: Annotated[int | None, typer.Option(min=1, help="max_model_len; default: 8192, or less.")] = None,
    batched_tokens: Annotated[
        int | None, typer.Option(min=1, help="max_num_batched_tokens; default: the card's.")
    ] = None,
    utilization: Annotated[float, typer.Option(min=0.01, max=1.0, help="gpu_memory_utilization.")] = 0.92,
    kv_dtype: Annotated[str, typer.Option("--kv-cache-dtype", help="The cache's dtype.")] = "auto",
    kv_gib: Annotated[
        float | None, typer.Option(min=0.1, help="GiB of cache, instead of what the card leaves.")
    ] = None,
    quantization: Annotated[
        str | None, typer.Option(metavar="NAME", help="Count weights as fp8, awq, nvfp4, bf16, …; default: its own.")
    ] = None,
    input_tokens: Annotated[int, typer.Option("--input", min=1, help="Tokens of a prompt, on average.")] = 512,
    output_tokens: Annotated[int, typer.Option("--output", min=1, help="Tokens of an answer, on average.")] = 256,
    concurrency: Annotated[int, typer.Option(min=1, help="Clients that ask at the same time.")] = 1,
    engine: Annotated[str, typer.Option(help="Estimate another server: sglang, tensorrt-llm.")] = "vllm",
    draft: Annotated[
        str | None,
        typer.Option(metavar="METHOD[=MODEL]", help="Count what drafts too: mtp, eagle3=FOLDER, draft_model=ID."),
    ] = None,
    draft_tokens: Annotated[int | None, typer.Option(min=1, help="num_speculative_tokens; default: MTP's.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Do not ask the Hub.")] = False,
    as_json: Json = False,
) -> None:
    """Show what a model keeps on one GPU, and with an accelerator how fast it answers: an estimate with its range.

    Example: `modelfleet models show Qwen/Qwen3.5-9B --accelerator L40S --input 2000 --output 300 --concurrency 32`
    """
    from modelfleet.cli.models import Asked, run_show
    from modelfleet.cli.models_speed import AskedLoad

    load = AskedLoad(input_tokens, output_tokens, concurrency, engine)
    asked = Asked(
        accelerator, gpus, length, batched_tokens, utilization, kv_dtype, kv_gib, not offline, quantization, load,
        draft, draft_tokens,
    )  # fmt: skip
    raise typer.Exit(run_show(model, asked, as_json=as_json))


@app.command()
def usage(
    stack: Stack = "local",
    by: Annotated[Literal["key", "team", "model", "adapter", "day"], typer.Option(help="One row for each.")] = "key",
    since: Annotated[str, typer.Option(metavar="7d|24h", help="Requests that ended in this time.")] = "7d",
    records: Annotated[
        Path | None,
        typer.Option(
            "--records",
            metavar="DIR",
            help="Copies of the replicas' records; default: this machine's, or those in the stack's bucket.",
        ),
    ] = None,
    price: Annotated[
        list[str] | None,
        typer.Option("--price", metavar="POOL=USD", help="USD per node hour of a pool; default: the plan's."),
    ] = None,
    json: Json = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV instead of a table.")] = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a self-contained HTML page.")
    ] = None,
    compare_aws: Annotated[
        bool,
        typer.Option("--compare-aws", help="Put AWS's own bill beside it, from Cost Explorer, which asks 0.01 USD."),
    ] = False,
) -> None:
    """Show who used how many tokens and what it cost, from what the replicas wrote down of each request and node.

    Example: `modelfleet usage --by team --since 30d --html usage.html`
    """
    from modelfleet.cli.usage import run_usage

    raise typer.Exit(
        run_usage(
            stack,
            by=by,
            since=since,
            records=records,
            prices=price or (),
            as_json=json,
            as_csv=csv,
            html=html,
            compare_aws=compare_aws,
        )
    )


gpu = typer.Typer(help="This machine's NVIDIA cards.", no_args_is_help=True)
app.add_typer(gpu, name="gpu")


@gpu.callback()
def gpu_group() -> None:
    """This machine's NVIDIA cards."""


@gpu.command(name="check")
def gpu_check(
    stack: Stack = "gpu",
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL|FILE", help="Only this one: of the stack, a model file, or an id of the Hub."),
    ] = None,
    save: Annotated[bool, typer.Option("--save", help="Keep the figures: plans then count with them.")] = False,
    weights: Annotated[
        bool, typer.Option("--weights", help="Load the model's weights; default: random ones, which take as much.")
    ] = False,
    pretend: Annotated[
        bool, typer.Option("--pretend", help="Try the check itself with vLLM's CPU build in place of the card.")
    ] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Do not ask the Hub.")] = False,
    json: Json = False,
) -> None:
    """Start each model of a stack on this machine's card, and show the plan's memory and speed beside the real ones.

    Exit code 0: the plan holds; 1: it is off by more than 2 % of KV tokens or 0.3 GiB.

    Example: `modelfleet gpu check --model Qwen/Qwen3-8B --save`
    """
    from modelfleet.cli.gpu_check import Asked, run_gpu_check

    asked = Asked(model=model, save=save, weights=weights, pretend=pretend, network=not offline)
    raise typer.Exit(run_gpu_check(stack, asked, as_json=json))


key = typer.Typer(help="API keys: make, list, rotate and revoke them.", no_args_is_help=True)
app.add_typer(key, name="key")
KeyName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the key, as in the stack file's `keys`.")]


@key.command(name="add")
def key_add(name: KeyName, stack: Stack = "local") -> None:
    """Make a key's secret, and show it once; only its hash is deployed.

    Example: `modelfleet key add search --stack prod`
    """
    from modelfleet.cli.key import run_add

    raise typer.Exit(run_add(stack, name))


@key.command(name="list")
def key_list(stack: Stack = "local", json: Json = False) -> None:
    """List a stack's keys with their models, limits and ends; no secret is shown.

    Example: `modelfleet key list --stack prod`
    """
    from modelfleet.cli.key import run_list

    raise typer.Exit(run_list(stack, as_json=json))


@key.command(name="rotate")
def key_rotate(
    name: KeyName,
    stack: Stack = "local",
    grace: Annotated[str, typer.Option(help="How long the old secret stays valid: 30m, 24h, 7d.")] = "24h",
) -> None:
    """Make another secret for a key; for a while both are valid.

    Example: `modelfleet key rotate search --stack prod --grace 7d`
    """
    from modelfleet.cli.key import run_rotate

    raise typer.Exit(run_rotate(stack, name, grace))


@key.command(name="revoke")
def key_revoke(name: KeyName, stack: Stack = "local") -> None:
    """Take a key back: the running gateway refuses it at once, in a cluster when its pods are new.

    The key's open requests finish.

    Example: `modelfleet key revoke search --stack prod`
    """
    from modelfleet.cli.key import run_revoke

    raise typer.Exit(run_revoke(stack, name))


@app.command()
def add(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A Hub id, such as Qwen/Qwen3-8B.")],
    stack: Annotated[
        str | None, typer.Option("--stack", "-s", metavar="ENV", help="Also add it to this stack, with a pool.")
    ] = None,
    accelerator: Annotated[str | None, typer.Option(help="The card; default: chosen by --goal.")] = None,
    length: Annotated[
        int | None, typer.Option(min=1, help="Longest request in tokens; default: 8192, or less.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at once that one replica must hold.")] = 8,
    replicas: Annotated[str, typer.Option(metavar="A-B", help="Fewest and most replicas.")] = "1-2",
    goal: Annotated[
        Literal["cheapest", "fastest"], typer.Option(help="What decides among those that fit.")
    ] = "cheapest",
    yes: Annotated[bool, typer.Option("--yes", help="Write without asking.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be written.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Do not ask the Hub, nor AWS for prices.")] = False,
    json: Json = False,
) -> None:
    """Write a model file: accelerator and checkpoint chosen by the plan's own fit, speed and price.

    Shows the alternatives and the diff, and asks before it writes; with --json it writes only with --yes.

    Example: `modelfleet add Qwen/Qwen3-8B --stack dev --length 16384`
    """
    from modelfleet.cli.add import Asked, run_add

    asked = Asked(stack, accelerator, length, concurrency, replicas, goal, yes, dry_run, not offline)
    raise typer.Exit(run_add(model, asked, as_json=json))


@app.command(name="import")
def import_(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE|-", help="What serves the model today; `-` reads standard input.", show_default=False
        ),
    ],
    out: Annotated[
        str, typer.Option("--out", metavar="DIR|-", help="Where model files go; `-` prints them.")
    ] = "models",
    accelerator: Annotated[
        str | None,
        typer.Option("--accelerator", metavar="NAME", help="The GPU, where the file does not name it, e.g. L4."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over files that exist.")] = False,
    json: Json = False,
) -> None:
    """Make model files from what serves a model today: `vllm serve` commands and files around them.

    It reads scripts, Dockerfiles, compose, Kubernetes, KServe, Helm values, Ray Serve LLM and RayLLM files.

    What the file does not say becomes `???`, which `check` names; what a model file has no place for becomes a comment.

    Example: `modelfleet import deployment.yaml --accelerator L4`
    """
    from modelfleet.cli.import_models import run_import

    raise typer.Exit(run_import(files, out=out, accelerator=accelerator, force=force, as_json=json))


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="A model file, or a model_id in models/.")],
    to: Annotated[Literal["vllm", "ray-serve-llm"], typer.Option("--to", help="For whom.")] = "vllm",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write it there instead.", show_default=False)
    ] = None,
) -> None:
    """Print what serves a model without modelfleet: a `vllm serve` command, or a file for `serve run`.

    Example: `modelfleet export meta-llama/Llama-2-7b-chat-hf --to vllm`
    """
    from modelfleet.cli.export import run_export

    raise typer.Exit(run_export(model, to=to, out=out))


def main() -> None:
    """Entry point of the `modelfleet` script."""
    # A wrong option is wrong input, like a wrong key. typer itself would exit with 2, our code for the environment.
    usage_error: Any = typer.BadParameter.__base__
    usage_error.exit_code = 1
    try:
        app()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - `_report` raises what is not ours
        sys.exit(_report(error))


def _report(error: BaseException) -> int:
    """Print an error of the command and return its exit code; raises any other error again."""
    # Imported here: `modelfleet --help` takes a third of the time without them.
    from modelfleet.cli import output
    from modelfleet.serving.config.errors import EXIT_ENVIRONMENT, InputErrors, ModelfleetError

    if isinstance(error, InputErrors):
        output.show_findings(error.findings)
        return error.exit_code
    if isinstance(error, ModelfleetError):
        output.say(str(error), "bold red")
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        output.say("stopped; run the same command again to continue")
        return EXIT_ENVIRONMENT
    raise error


if __name__ == "__main__":
    main()
