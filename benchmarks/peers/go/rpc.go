package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

const (
	echoQueue = "bench-go-echo"
	replyTo   = "amq.rabbitmq.reply-to"
	echoed    = 1
)

type request struct {
	Args   []int          `json:"args"`
	Kwargs map[string]any `json:"kwargs"`
}

type reply struct {
	Result int     `json:"result"`
	Error  *string `json:"error"`
}

// rpcServer answers each request on its reply-to address, then acks it. One goroutine: a channel
// writes under a lock, so that more of them gain nothing for an echo.
func rpcServer() {
	channel := openChannel()
	must(channel.Qos(prefetch, 0, false))
	queue, err := channel.QueueDeclare(echoQueue, false, true, false, false, nil)
	must(err)
	deliveries, err := channel.Consume(queue.Name, "", false, false, false, false, nil)
	must(err)
	exitOnTerminate()
	say("ready", nil)
	for delivery := range deliveries {
		var asked request
		must(json.Unmarshal(delivery.Body, &asked))
		body, err := json.Marshal(reply{Result: asked.Args[0]})
		must(err)
		must(channel.PublishWithContext(context.Background(), "", delivery.ReplyTo, false, false, amqp.Publishing{
			ContentType: contentType, CorrelationId: delivery.CorrelationId, Body: body,
		}))
		must(delivery.Ack(false))
	}
}

// caller matches replies to the calls that wait for them.
type caller struct {
	channel *amqp.Channel
	lock    sync.Mutex
	last    uint64
	waiting map[string]chan []byte
}

func newCaller() *caller {
	c := &caller{channel: openChannel(), waiting: make(map[string]chan []byte)}
	replies, err := c.channel.Consume(replyTo, "", true, false, false, false, nil)
	must(err)
	go func() {
		for delivery := range replies {
			c.lock.Lock()
			answer := c.waiting[delivery.CorrelationId]
			delete(c.waiting, delivery.CorrelationId)
			c.lock.Unlock()
			answer <- delivery.Body
		}
	}()
	return c
}

func (c *caller) call(argument int) int {
	body, err := json.Marshal(request{Args: []int{argument}, Kwargs: map[string]any{}})
	must(err)
	answer := make(chan []byte, 1)
	c.lock.Lock()
	c.last++
	id := strconv.FormatUint(c.last, 10)
	c.waiting[id] = answer
	c.lock.Unlock()
	must(c.channel.PublishWithContext(context.Background(), "", echoQueue, false, false, amqp.Publishing{
		ContentType: contentType, CorrelationId: id, ReplyTo: replyTo, Body: body,
	}))
	var answered reply
	must(json.Unmarshal(<-answer, &answered))
	return answered.Result
}

// closedLoop keeps inFlight goroutines calling for so long, and returns the latencies.
func closedLoop(c *caller, inFlight int, seconds float64) []time.Duration {
	end := time.Now().Add(time.Duration(seconds * float64(time.Second)))
	measured := make([][]time.Duration, inFlight)
	var group sync.WaitGroup
	for slot := range measured {
		group.Add(1)
		go func(slot int) {
			defer group.Done()
			for {
				sent := time.Now()
				answer := c.call(echoed)
				received := time.Now()
				measured[slot] = append(measured[slot], received.Sub(sent))
				if answer != echoed {
					must(fmt.Errorf("the echo of %d was %d", echoed, answer))
				}
				if received.After(end) {
					return
				}
			}
		}(slot)
	}
	group.Wait()
	var all []time.Duration
	for _, latencies := range measured {
		all = append(all, latencies...)
	}
	return all
}

func rpcClient() {
	options := flag.NewFlagSet("rpc-client", flag.ExitOnError)
	levels := options.String("in-flight", "", "calls in flight, one level or several with commas")
	seconds := options.Float64("seconds", 0, "measured span of each level")
	warmUp := options.Float64("warm-up", 0, "seconds before it")
	must(options.Parse(os.Args[2:]))
	c := newCaller()
	for _, level := range strings.Split(*levels, ",") {
		inFlight, err := strconv.Atoi(level)
		must(err)
		closedLoop(c, inFlight, *warmUp)
		say("measuring", map[string]any{"in_flight": inFlight})
		used, started := cpuUsed(), time.Now()
		latencies := closedLoop(c, inFlight, *seconds)
		elapsed, cpu := time.Since(started), cpuUsed()-used
		sort.Slice(latencies, func(i, j int) bool { return latencies[i] < latencies[j] })
		say("sample", map[string]any{
			"in_flight":    inFlight,
			"count":        len(latencies),
			"elapsed_s":    elapsed.Seconds(),
			"p50_ms":       quantileMs(latencies, 0.50),
			"p99_ms":       quantileMs(latencies, 0.99),
			"p999_ms":      quantileMs(latencies, 0.999),
			"client_cpu_s": cpu,
		})
	}
}

// quantileMs is the nearest-rank quantile of ordered latencies, in milliseconds.
func quantileMs(ordered []time.Duration, share float64) float64 {
	rank := int(math.Ceil(share*float64(len(ordered)))) - 1
	if rank < 0 {
		rank = 0
	}
	return ordered[rank].Seconds() * 1e3
}

func cpuUsed() float64 {
	var usage syscall.Rusage
	must(syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return float64(usage.Utime.Nano()+usage.Stime.Nano()) / 1e9
}
