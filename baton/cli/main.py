"""The command `baton`: puts the command groups together."""

import typer

from baton.cli import (
    autoscale,
    calibrate,
    certs,
    config,
    demo,
    explain,
    generate,
    key,
    plan,
    record,
    simulate,
    status,
    top,
    up,
)

app = typer.Typer(
    name="baton",
    help="Disaggregated prefill/decode serving for large language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("up")(up.up)
app.command("autoscale")(autoscale.autoscale)
app.command("generate")(generate.generate)
app.command("status")(status.status)
app.command("top")(top.top)
app.command("explain")(explain.explain)
app.command("key")(key.key)
app.command("demo")(demo.demo)
app.command("simulate")(simulate.simulate)
app.command("plan")(plan.plan)
app.command("calibrate")(calibrate.calibrate)
app.command("record")(record.record)
app.command("certs")(certs.certs)
app.add_typer(config.app, name="config")


def main() -> None:
    """Runs the command line; exits with 0, or 1 after saying what went wrong."""
    app()


if __name__ == "__main__":
    main()
