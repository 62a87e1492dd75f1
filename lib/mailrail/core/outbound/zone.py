"""Who is behind many domains: a share for each, where strangers choose domains."""


def zone_of(domain: str) -> str:
    """The last two labels of a domain: below one that he has, a stranger makes any number of names, at no cost.

    Under a name like co.uk many share one zone, so what a zone may have is a lot.
    """
    return ".".join(domain.removesuffix(".").split(".")[-2:])
