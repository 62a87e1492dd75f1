"""What some server somewhere took, or could take, for the end of a message: SMTP smuggling (SIN-02, SIN-03)."""

WITH_BARE_LINE_ENDS = [
    b"\n.\n",
    b"\n.\r\n",
    b"\r\n.\n",
    b"\r.\r",
    b"\r\n.\r",
    b"\r.\r\n",
    b"\r.\n",
    b"\n.\r",
    b"\n\r.\n\r",
    b"\r\r\n.\r\r\n",
    b"\r\n.\r\r\n",
]
"""A CR or LF alone is in them."""

WITH_OTHER_OCTETS = [
    b"\r\n\x00.\r\n",
    b"\r\n.\x00\r\n",
    b"\r\n\x0b.\r\n",
    b"\r\n.\x0c\r\n",
    b"\xc2\x85.\xc2\x85",
    b"\xe2\x80\xa8.\xe2\x80\xa8",
    b"\r\n\xef\xbb\xbf.\r\n",
]
"""Every line end in them is CRLF, if there is one."""

ENDS = [*WITH_BARE_LINE_ENDS, *WITH_OTHER_OCTETS]
