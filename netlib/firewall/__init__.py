"""What containers may reach and what reaches them: objects that betray no backend, and the backends behind them."""
