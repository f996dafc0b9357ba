"""Notebooks are executed by this interpreter, and what ends them is told in a line."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillExecutionError
from tqdm import tqdm

from cmrm_utils.errors import InputError


class OwnKernel(AsyncKernelManager):
    """A kernel of the interpreter that this runs in, with figures in the notebook.

    The first ``python3`` that Jupyter finds may be another environment's: cluster modules set
    ``JUPYTER_PATH``.
    """

    @property
    def kernel_spec(self) -> KernelSpec:
        """The interpreter's own, whatever the kernel's name."""
        return KernelSpec(
            argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            env={"MPLBACKEND": "module://matplotlib_inline.backend_inline"},
            display_name="Python 3",
            language="python",
        )


@contextmanager
def telling(path: Path, see: str, timeout: int) -> Iterator[None]:
    """End with one line, and exit code 1, when a notebook cannot be executed to its end.

    Args:
        path: of the notebook.
        see: where to look for more.
        timeout: seconds that a cell may take.

    Raises:
        InputError: a cell raised one.
    """
    for name in ("papermill", "traitlets"):  # which would tell of it too, at length
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    except (PapermillExecutionError, CellExecutionError) as error:
        if error.ename == "InputError":
            raise InputError(f"{path.name}: {error.evalue} ({see})") from error
        cell = f" in cell {error.cell_index}" if hasattr(error, "cell_index") else ""
        fail(f"{path.name} failed{cell}: {error.ename}: {error.evalue}\n{see}")
    except CellTimeoutError:
        fail(f"{path.name}: a cell ran longer than {timeout} s; {see}")
    except DeadKernelError:
        fail(f"{path.name}: the kernel died; {see}")
    except RuntimeError as error:
        fail(f"{path.name}: no kernel starts ({error}); is ipykernel installed in {sys.prefix}?")


def fail(text: str) -> None:
    """Say what failed, and end with exit code 1."""
    tqdm.write(f"cmrm: {text}", file=sys.stderr)  # on a line of its own, below no half bar
    sys.exit(1)
