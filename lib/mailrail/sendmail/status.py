"""Exit statuses of sendmail (SML-09), as sysexits.h numbers them, and the error that carries one."""

from enum import IntEnum


class ExitStatus(IntEnum):
    """What the caller learns. Every status but OK means that the message was not sent to everybody."""

    OK = 0
    USAGE = 64  # a wrong or unknown flag, no recipient
    DATA = 65  # the message is broken, or was refused for its content
    NO_INPUT = 66  # there is no input, or it cannot be read at all
    NO_USER = 67  # every recipient that was refused is unknown
    NO_HOST = 68  # the submission server's name does not exist
    UNAVAILABLE = 69  # refused otherwise
    SOFTWARE = 70  # a mistake of this program
    CANNOT_KEEP = 73  # the message can be sent only later, and cannot be kept until then
    IO = 74  # reading the message or writing the answer failed
    TRY_AGAIN = 75  # not sent, and kept for somebody to look at
    PROTOCOL = 76  # what answers is no SMTP server
    NO_PERMISSION = 77  # the login or the sender was refused
    CONFIG = 78  # the configuration is missing or wrong


class Stop(Exception):
    """The command ends here. The text says what is wrong, then what to do."""

    def __init__(self, status: ExitStatus, text: str) -> None:
        super().__init__(text)
        self.status = status
