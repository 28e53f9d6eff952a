"""Child processes: started, heard, measured, signalled and reaped."""
