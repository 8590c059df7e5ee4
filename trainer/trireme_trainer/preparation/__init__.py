"""What slot 0 does before any rank starts, whatever is trained: preflight, data, choice of the resume point."""
