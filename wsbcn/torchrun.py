"""``torchrun``, except that its last line is the error message of the first process that failed."""
import os
import sys
import tempfile
from pathlib import Path

FAULT_FILE = 'WSBCN_FAULT_FILE'  # file for the error message of a process


def main() -> None:
    """Run the command line of ``torchrun``."""
    from torch.distributed import run  # imported here, since commands import this module only for a name
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    with tempfile.TemporaryDirectory() as folder:
        fault = Path(folder, 'fault')
        os.environ[FAULT_FILE] = str(fault)
        try:
            run.main(sys.argv[1:])
        except ChildFailedError as error:
            print(error, file=sys.stderr)
            sys.exit(fault.read_text() if fault.is_file() else 1)


if __name__ == '__main__':
    main()
