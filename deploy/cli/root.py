"""The command itself, and how its errors end: exit code 1 for a failure, 2 for a wrong call or setting."""

import os
import sys

import click

from deploy.cli import callers, processes, stacks, upkeep
from deploy.lifeline import follow_lifeline
from deploy.local.stopping import Interrupted
from deploy.sandbox.__main__ import main as run_sandbox
from workers.environment import BadSetting

COMMANDS = (
    stacks.up, stacks.demo, stacks.faults,
    callers.token, callers.send,
    processes.api, processes.worker, processes.pacer,
    upkeep.migrate, upkeep.rekey, upkeep.check,
)  # fmt: skip


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="paceline", message="%(version)s")
def paceline() -> None:
    """Sends outbound messages exactly as fast as the platform allows: none lost, none twice."""


for _command in COMMANDS:
    paceline.add_command(_command)
run_sandbox.short_help = "An upstream to try things out on."
paceline.add_command(run_sandbox, "sandbox")


def main() -> None:
    """The entry point: errors as one line for people, with the contract's exit codes."""
    follow_lifeline()
    try:
        paceline(standalone_mode=False)
    except (click.exceptions.Abort, Interrupted):
        click.echo("stopped", err=True)
        sys.exit(130)
    except click.UsageError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(1)
    except BadSetting as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)
    except (RuntimeError, OSError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    except Exception as error:
        if os.environ.get("PACELINE_DEBUG"):
            raise
        click.echo(f"Error: {type(error).__name__}: {error} (PACELINE_DEBUG=1 shows where)", err=True)
        sys.exit(1)
