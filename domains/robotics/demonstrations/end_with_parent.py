"""For processes of a pool: whoever kills the command kills them with it."""

import os
import threading
from multiprocessing import parent_process


def end_with_parent() -> None:
    """End this process, in the middle of whatever it does, as soon as the process that started it is gone.

    A pool's processes end when it asks them to, which one that was killed does not.
    """
    parent = parent_process()
    if parent is None:
        raise RuntimeError("end_with_parent belongs into a process that multiprocessing has started")

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
