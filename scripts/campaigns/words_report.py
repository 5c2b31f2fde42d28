def write_report(found, out):
    pass
