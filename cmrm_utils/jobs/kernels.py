"""The kernel that executes notebooks, and one-line messages for what stops it."""

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
    """A kernel of the current interpreter, with figures in the notebook.

    The first ``python3`` that Jupyter finds may belong to another environment: cluster modules set
    ``JUPYTER_PATH``. Progress bars and warnings of debugger and tokenizers stay out of notebooks.
    """

    @property
    def kernel_spec(self) -> KernelSpec:
        """How to start the kernel, whatever its name."""
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(
            argv=[*command, "--IPKernelApp.log_level=ERROR"],
            env={
                "MPLBACKEND": "module://matplotlib_inline.backend_inline",
                "PYDEVD_DISABLE_FILE_VALIDATION": "1",
                "TOKENIZERS_PARALLELISM": "false",
                "TQDM_DISABLE": "1",
            },
            display_name="Python 3",
            language="python",
        )


@contextmanager
def telling(path: Path, see: str, timeout: int) -> Iterator[None]:
    """Exit with one line and code 1 when a notebook does not reach its end.

    Args:
        path: of the notebook.
        see: where to look for more, for the message.
        timeout: seconds that a cell may take, for the message.

    Raises:
        InputError: a cell raised one.
        SystemExit: anything else stopped the notebook.
    """
    for name in ("papermill", "traitlets"):  # they would log the same at length
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
    """Print what failed and exit with code 1.

    Raises:
        SystemExit: always.
    """
    tqdm.write(f"cmrm: {text}", file=sys.stderr)  # keeps the line apart from a progress bar
    sys.exit(1)
