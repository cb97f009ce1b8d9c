"""What the log of a Valkey that would not start means for the operator."""

SIGNS = {
    "No space left on device": "the disk is full: free some space",
    "AOF write error": "the disk is full or failing: free some space",
    "Read-only file system": "the disk is read-only: make it writable, or move OUTKEEP_DATA",
    "Permission denied": "permission denied: give this user the folder and all files in it",
    "Bad file format reading the append only file": (
        "its append-only file is damaged: keep a copy of the folder, then run valkey-check-aof --fix on it"
    ),
    "AOF loading aborted": "its append-only file is damaged or incomplete: restore the folder from a copy",
}
"""Text in a log → what it means and what to do. A cut tail is not among them: Valkey repairs it itself."""


def diagnose(log: str) -> str:
    """One line on why a start failed, from what that run logged."""
    for sign, advice in SIGNS.items():
        if sign in log:
            return advice
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
