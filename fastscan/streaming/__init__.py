"""Series larger than memory: filtered, smoothed and differentiated block by block, from arrays on disk or an iterator."""

from fastscan.streaming.api import StreamedFilter, StreamedSmoother, filter_stream, smooth_stream, value_and_grad_stream

__all__ = ["StreamedFilter", "StreamedSmoother", "filter_stream", "smooth_stream", "value_and_grad_stream"]
