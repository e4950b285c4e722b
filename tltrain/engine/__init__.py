"""Where training meets Ray: worker groups, plans and retries."""
