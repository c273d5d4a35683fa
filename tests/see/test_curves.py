"Figures 3 and 4: curves and points are those of the loss and of the table"
import numpy as np, pandas as pd, pytest, torch
from matplotlib.figure import Figure
from focusnet_fastai.loss import focus_terms
from focusnet_fastai.probabilities import cross_fitted, expected_calibration_error
from focusnet_fastai.see.curves import plot_baseline_quality, plot_difficulty
from focusnet_fastai.see.reliability import plot_reliability
from focusnet_fastai.see.examples import digit_quality


def test_figure_3_is_the_loss():
    fig = plot_difficulty(probs=(.3, .7), n_classes=5)
    curves = [l for l in fig.axes[0].lines if len(l.get_xdata())>100]
    assert len(curves)==2 and curves[0].get_linestyle()!=curves[1].get_linestyle()
    for p, l in zip((.3, .7), curves):
        d, loss = np.asarray(l.get_xdata()), np.asarray(l.get_ydata())
        z = torch.log(torch.tensor([p]+[(1-p)/4]*4, dtype=torch.float64))
        pb = torch.tensor(p-d)
        zb = torch.log(torch.cat([pb[:, None], ((1-pb)/4)[:, None].expand(-1, 4)], 1))
        want = focus_terms(z.expand(len(d), -1), zb, torch.zeros(len(d), dtype=torch.long))['cls']
        np.testing.assert_allclose(loss, want, atol=1e-6)
        others = (1-p)*np.exp(-d/4)                                                    # Equation 9 by hand: the d of the others is -d_t/4 each
        np.testing.assert_allclose(loss, -np.log(p*np.exp(d)/(p*np.exp(d)+others)), atol=1e-6)
        assert (np.diff(loss[np.argsort(d)])<0).all()                                 # smaller the easier
    assert [t.get_text().split(':')[0] for t in fig.axes[0].texts if ':' in t.get_text()]==['difficult', 'easy']


def test_figure_3_of_images(base, learn, valid):
    zb, z, y = valid
    fig = learn.plot_difficulty(base)
    points = np.concatenate([np.asarray(c.get_offsets()) for c in fig.axes[0].collections])
    i = torch.arange(len(y))
    want = np.stack([(z.softmax(1)-zb.softmax(1))[i, y], focus_terms(z, zb, y)['cls']], 1)
    assert len(points)==len(want)
    np.testing.assert_allclose(points[np.lexsort(points.T)], want[np.lexsort(want.T)], atol=1e-4)
    assert len({len(c.get_paths()[0].vertices) for c in fig.axes[0].collections})==2   # two shapes of markers
    with pytest.raises(ValueError, match='needs both'): plot_difficulty(learn)
    with pytest.raises(ValueError, match='between 0 and 1'): plot_difficulty(probs=(1.,))


def test_figure_4_with_seeds():
    df = pd.DataFrame([dict(epochs=e, seed=s, baseline=.1*e, focusnet=.6+.01*e+.02*s, full=.65+.01*s) for e in (1, 3, 6) for s in (0, 1)])
    fig = plot_baseline_quality(df, title='digits')
    ax = fig.axes[0]
    line = ax.containers[0].lines[0]
    np.testing.assert_allclose(np.array([line.get_xdata(), line.get_ydata()], dtype=float), [[1, 3, 6], [61+1, 63+1, 66+1]])
    segments = ax.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose([s[1][1]-s[0][1] for s in segments], 2*np.std([0, 2], ddof=1), rtol=1e-5)
    dashed = [l for l in ax.lines if l.get_linestyle()=='--']
    assert len(dashed)==1 and np.allclose(dashed[0].get_ydata(), 65.5) and line.get_linestyle()=='-'
    legend = ax.get_legend()
    assert '2 seeds' in legend.get_title().get_text() and 'standard deviation' in legend.get_title().get_text()
    assert [t.get_text() for t in ax.get_xticklabels()]==['1\n10.0%', '3\n30.0%', '6\n60.0%'] and ax.get_title()=='digits'


def test_figure_4_without_seeds(base, valid):
    df = pd.DataFrame(dict(epochs=[1, 10, 60], focusnet=[.5, .55, .6]))
    ax = plot_baseline_quality(df, full=.58).axes[0]
    assert ax.get_legend().get_title().get_text()=='one seed' and [t.get_text() for t in ax.get_xticklabels()]==['1', '10', '60']
    assert '58.00 %' in ' '.join(t.get_text() for t in ax.get_legend().get_texts())
    mine = base.plot_baseline_quality(df).axes[0]
    acc = (valid[0].argmax(1)==valid[2]).float().mean().item()*100
    assert np.allclose([l.get_ydata() for l in mine.lines if l.get_linestyle()=='--'], acc, atol=1e-3)


@pytest.mark.parametrize('df,words', [(dict(epochs=[], focusnet=[]), 'empty'), (dict(epochs=[1], focusnet=[.5]), 'lacks full'), (dict(epochs=[1], full=[.5]), 'lacks focusnet'),
                                      (dict(epochs=[1], focusnet=[55.], full=[.5]), 'holds 55'), (dict(epochs=[1, 1], seed=[0, 0], focusnet=[.5, .5], full=[.5, .5]), 'same')])
def test_mistakes_in_the_table(df, words):
    with pytest.raises(ValueError, match=words): plot_baseline_quality(pd.DataFrame(df))


def test_figure_4_of_digits():
    df = digit_quality(epochs=(1,), seeds=1, n_train=60, n_epoch=2)
    assert list(df.columns)==['epochs', 'seed', 'baseline', 'focusnet', 'full'] and len(df)==1
    assert df[['baseline', 'focusnet', 'full']].stack().between(0, 1).all()
    pd.testing.assert_frame_equal(df, digit_quality(epochs=(1,), seeds=1, n_train=60, n_epoch=2))


def test_on_given_axes():
    fig = Figure()
    a, b = fig.subplots(1, 2)
    assert plot_difficulty(ax=a) is fig and plot_baseline_quality(pd.DataFrame(dict(epochs=[1, 2], focusnet=[.5, .6])), full=.5, ax=b) is fig
    assert a.lines and b.lines


def words(fig): return ' '.join(t.get_text() for a in fig.axes for t in a.texts).replace('\n', ' ')


@pytest.mark.parametrize('width', ['column', 5, 'page'])
def test_curves_at_a_width(base, learn, width):
    "As wide as asked; words keep their points; nothing stands over the edge or on another text"
    inches = {'column': 3.5, 'page': 7.2}.get(width, width)
    df = pd.DataFrame([dict(epochs=e, seed=s, baseline=.1*e, focusnet=.6+.01*e+.02*s, full=.65+.01*s) for e in (1, 3, 6) for s in (0, 1)])
    for fig in (plot_difficulty(width=width), learn.plot_difficulty(base, width=width), plot_baseline_quality(df, title='digits', width=width)):
        assert fig.get_size_inches()[0]==inches
        fig.draw_without_rendering()
        ax = fig.axes[0]
        parts = [ax.xaxis.label, ax.yaxis.label, ax.title, *ax.texts, *ax.get_xticklabels()]
        boxes = [t.get_window_extent() for t in parts if t.get_text().strip()] + [ax.get_legend().get_window_extent()]
        for i, a in enumerate(boxes):
            assert a.x0>=-2 and a.x1<=fig.bbox.x1+2 and a.y0>=-2 and a.y1<=fig.bbox.y1+2, (i, a)
            for b in boxes[i+1:]: assert min(a.x1, b.x1)-max(a.x0, b.x0)<=1 or min(a.y1, b.y1)-max(a.y0, b.y0)<=1
        assert ax.xaxis.label.get_fontsize()==9


def test_the_figure_doubts_itself():
    "A poor baseline above the dashed line, and FocusNet below it, are said; `note=False` leaves it to the caption"
    df = pd.DataFrame(dict(epochs=[2, 8], baseline=[.855, .81], focusnet=[.86, .815], full=[.82, .82]))
    text = words(plot_baseline_quality(df))
    assert 'baseline of 2 epochs (85.5%) is better than the fully trained one (82.0%)' in text and 'With baselines of 8 epochs, FocusNet is below' in text
    assert 'baseline' not in words(plot_baseline_quality(df, note=False))
    assert not words(plot_baseline_quality(df.assign(full=.7, focusnet=.9).drop(columns='baseline')))


@pytest.mark.parametrize('title', ['Ba$$in', r'\\frac{', 'x_1 $'])
def test_titles_are_no_mathematics(tmp_path, title):
    fig = plot_baseline_quality(pd.DataFrame(dict(epochs=[1], focusnet=[.5])), full=.4, title=title)
    fig.savefig(tmp_path/'f.png')
    assert fig.axes[0].get_title()==title


@pytest.mark.filterwarnings('ignore:Exception occured:UserWarning', 'ignore:.*no better than guessing')
def test_progress_of_figure_4():
    "A line for each training, counted"
    lines = []
    digit_quality(epochs=(1,), seeds=2, n_train=60, n_epoch=2, log=lines.append)
    assert [o.split(' ')[0] for o in lines]==[f'{i}/6' for i in range(1, 7)] and 'baseline of 1 epoch' in lines[1]


def test_reliability_is_that_of_the_table(base, learn, valid):
    "Points are means of bins, counted by a loop; legends have the calibration errors, before and after the cross-fitted temperature; counts are all images"
    zb, z, y = valid
    fig = learn.show_reliability(base)
    assert len(fig.axes)==4
    for (name, logits), ax, counts in zip((('Baseline', zb), ('FocusNet', z)), fig.axes[:2], fig.axes[2:]):
        after = cross_fitted(logits, y)
        raw, tempered = ax.lines[1:]
        p, k = logits.softmax(1).max(1)
        want = {}
        for c, right in zip(p.tolist(), (k==y).tolist()): want.setdefault(min(int(c*15), 14), []).append((c, right))
        np.testing.assert_allclose(np.array([raw.get_xdata(), raw.get_ydata()]).T, [np.mean(want[b], 0) for b in sorted(want)], atol=1e-5)
        texts = [o.get_text() for o in ax.get_legend().get_texts()]
        assert texts==[f"as it is: ECE {expected_calibration_error(logits.softmax(1), y):.3f}", f"T = {after['temperature']:.2f}: ECE {after['ece']:.3f}"]
        assert ax.get_title()==name and [int(o.get_data().values.sum()) for o in counts.patches]==[len(y)]*2
        np.testing.assert_array_equal(counts.patches[0].get_data().values, [len(want.get(b, [])) for b in range(15)])
        assert tempered.get_color()!=raw.get_color()
    assert len(learn.show_reliability().axes)==2
    right = plot_reliability({'': 9*torch.eye(10)[y]}, y)
    assert len(right.axes[0].get_legend().get_texts())==1  # all right: no temperature is the best
