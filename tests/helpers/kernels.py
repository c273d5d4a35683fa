"Jupyter kernels, as notebooks have them"
import os


class Kernel:
    "A kernel that draws as in a notebook"
    def __init__(self):
        from jupyter_client.manager import start_new_kernel
        env = {k: v for k, v in os.environ.items() if k != 'MPLBACKEND'}
        self.manager, self.client = start_new_kernel(startup_timeout=180, env=env)

    def do(self, code, timeout=300):
        "How a cell ends, and what it shows as (kind, content)"
        shown = []
        reply = self.client.execute_interactive(code, timeout=timeout, output_hook=lambda m: shown.append((m['msg_type'], m['content'])))
        return reply['content']['status'], shown

    def shown(self, code):
        "What a cell shows, which must end well"
        status, shown = self.do(code)
        assert status == 'ok', shown[-1]
        return [o for kind, o in shown if kind in ('stream', 'display_data', 'execute_result')]

    def end(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


def pictures(shown): return sum('image/png' in o.get('data', {}) for o in shown)  # how many a cell shows
def printed(shown): return ''.join(o['text'] for o in shown if 'text' in o)
