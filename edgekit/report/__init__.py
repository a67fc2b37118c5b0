"""What people read: tables now, pages later."""
