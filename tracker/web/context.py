def shell(request) -> dict:
    return {}
